"""Models of timm that are no plain ViT, by timm's names; timm itself says the rest of them. `"timm:NAME"` takes any."""

ADAPTED = (
    "swin_tiny_patch4_window7_224.ms_in1k",
    "swin_small_patch4_window7_224.ms_in1k",
    "swin_base_patch4_window7_224.ms_in22k_ft_in1k",
    "swin_base_patch4_window12_384.ms_in22k_ft_in1k",
    "swin_large_patch4_window7_224.ms_in22k_ft_in1k",
    "swin_large_patch4_window12_384.ms_in22k_ft_in1k",
    "swinv2_tiny_window8_256.ms_in1k",
    "swinv2_small_window8_256.ms_in1k",
    "swinv2_base_window8_256.ms_in1k",
    "swinv2_base_window12to16_192to256.ms_in22k_ft_in1k",
    "swinv2_large_window12to16_192to256.ms_in22k_ft_in1k",
    "vit_tiny_r_s16_p8_224.augreg_in21k_ft_in1k",
    "vit_small_r26_s32_224.augreg_in21k_ft_in1k",
    "vit_base_r50_s16_224.orig_in21k",
    "vit_base_r50_s16_384.orig_in21k_ft_in1k",
    "vit_large_r50_s32_224.augreg_in21k_ft_in1k",
    "resnet50.a1_in1k",
    "resnet50.tv2_in1k",
)
