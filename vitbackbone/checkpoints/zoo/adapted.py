"""timm models that are not plain ViTs: the facts that a list of models shows. timm supplies the rest when one is
loaded. `"timm:NAME"` loads any other model of timm.
"""

#    timm's name: pixels a side, stride and width of the last layer, millions of parameters without head, licence
ADAPTED: dict[str, tuple[int, int, int, float, str]] = {
    "swin_tiny_patch4_window7_224.ms_in1k": (224, 32, 768, 27.5, "mit"),
    "swin_small_patch4_window7_224.ms_in1k": (224, 32, 768, 48.8, "mit"),
    "swin_base_patch4_window7_224.ms_in22k_ft_in1k": (224, 32, 1024, 86.7, "mit"),
    "swin_base_patch4_window12_384.ms_in22k_ft_in1k": (384, 32, 1024, 86.9, "mit"),
    "swin_large_patch4_window7_224.ms_in22k_ft_in1k": (224, 32, 1536, 195.0, "mit"),
    "swin_large_patch4_window12_384.ms_in22k_ft_in1k": (384, 32, 1536, 195.2, "mit"),
    "swinv2_tiny_window8_256.ms_in1k": (256, 32, 768, 27.6, "mit"),
    "swinv2_small_window8_256.ms_in1k": (256, 32, 768, 49.0, "mit"),
    "swinv2_base_window8_256.ms_in1k": (256, 32, 1024, 86.9, "mit"),
    "swinv2_base_window12to16_192to256.ms_in22k_ft_in1k": (256, 32, 1024, 86.9, "mit"),
    "swinv2_large_window12to16_192to256.ms_in22k_ft_in1k": (256, 32, 1536, 195.2, "mit"),
    "vit_tiny_r_s16_p8_224.augreg_in21k_ft_in1k": (224, 32, 192, 6.1, "apache-2.0"),
    "vit_small_r26_s32_224.augreg_in21k_ft_in1k": (224, 32, 384, 36.0, "apache-2.0"),
    "vit_base_r50_s16_224.orig_in21k": (224, 16, 768, 97.9, "apache-2.0"),
    "vit_base_r50_s16_384.orig_in21k_ft_in1k": (384, 16, 768, 98.2, "apache-2.0"),
    "vit_large_r50_s32_224.augreg_in21k_ft_in1k": (224, 32, 1024, 328.0, "apache-2.0"),
    "resnet50.a1_in1k": (224, 32, 2048, 23.5, "apache-2.0"),
    "resnet50.tv2_in1k": (176, 32, 2048, 23.5, "bsd-3-clause"),
    # facebookresearch/hiera and facebookresearch/sam2, README.md, say the same of the licences of the weights
    "hiera_tiny_224.mae_in1k_ft_in1k": (224, 32, 768, 27.1, "cc-by-nc-4.0"),
    "hiera_small_224.mae_in1k_ft_in1k": (224, 32, 768, 34.2, "cc-by-nc-4.0"),
    "hiera_base_224.mae_in1k_ft_in1k": (224, 32, 768, 50.8, "cc-by-nc-4.0"),
    "hiera_base_plus_224.mae_in1k_ft_in1k": (224, 32, 896, 69.0, "cc-by-nc-4.0"),
    "hiera_large_224.mae_in1k_ft_in1k": (224, 32, 1152, 212.6, "cc-by-nc-4.0"),
    "hiera_huge_224.mae_in1k_ft_in1k": (224, 32, 2048, 670.7, "cc-by-nc-4.0"),
    "sam2_hiera_tiny.fb_r896_2pt1": (896, 32, 768, 26.9, "apache-2.0"),
    "sam2_hiera_small.fb_r896_2pt1": (896, 32, 768, 33.9, "apache-2.0"),
    "sam2_hiera_base_plus.fb_r896_2pt1": (896, 32, 896, 68.7, "apache-2.0"),
    "sam2_hiera_large.fb_r1024_2pt1": (1024, 32, 1152, 212.2, "apache-2.0"),
    "convnext_tiny.dinov3_lvd1689m": (224, 32, 768, 27.8, "dinov3-license"),
    "convnext_small.dinov3_lvd1689m": (224, 32, 768, 49.5, "dinov3-license"),
    "convnext_base.dinov3_lvd1689m": (224, 32, 1024, 87.6, "dinov3-license"),
    "convnext_large.dinov3_lvd1689m": (224, 32, 1536, 196.2, "dinov3-license"),
}
